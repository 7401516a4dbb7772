//! The broker: hands out regions over Unix sockets.
