//! Tokens: who is the bearer?
