//! What the admin API keeps: on both engines alike, and on every node.

mod bounds;
mod follower;
mod load;
mod site;
mod store;
mod troubles;
