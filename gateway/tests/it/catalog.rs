//! What the admin API keeps: on both engines alike, and on every node.

mod store;
