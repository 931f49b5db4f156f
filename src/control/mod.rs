//! Status and orders over a unix socket.
