//! What every test here shares: the gateway as a process, clients on real sockets.
