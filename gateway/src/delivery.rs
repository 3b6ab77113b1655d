//! Act 3: commits become bytes on other sockets.
