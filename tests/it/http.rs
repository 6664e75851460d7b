//! The front door: HTTP, login, Host and Origin, REST.
