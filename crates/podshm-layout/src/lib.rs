//! The bytes in shared memory: headers, rings, tables, versions.
