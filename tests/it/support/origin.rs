//! A scripted origin: real sockets on port 0, any bytes, stalls, resets.
