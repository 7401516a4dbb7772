//! Identity, policy, budgets and reaping: pure decisions.
