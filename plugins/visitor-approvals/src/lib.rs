//! Visitor approvals.
