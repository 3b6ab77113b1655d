//! Bytes ↔ events, without I/O.
