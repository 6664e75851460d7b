//! Runs, subscriptions and permissions, over real sockets.
