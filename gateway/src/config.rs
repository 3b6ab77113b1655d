//! Settings: as written, then as meant.
