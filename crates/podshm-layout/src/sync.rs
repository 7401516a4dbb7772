//! The seam for loom: the same code is model-checked with loom's fences.

#[cfg(not(loom))]
pub use core::sync::atomic::{Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{Ordering, fence};

/// Orders for the compiler alone; loom has none, and models of what relies on it use full fences.
pub use core::sync::atomic::compiler_fence;
