//! Regions: sealed memory with one writer, and everything unsafe about them.
