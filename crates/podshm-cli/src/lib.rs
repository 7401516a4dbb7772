//! The podshm command.
