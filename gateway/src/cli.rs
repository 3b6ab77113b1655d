//! What the command line does besides serving.

pub mod plugin_build;
