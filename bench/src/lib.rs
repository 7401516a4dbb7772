//! podshm beside its peers, in one run.
