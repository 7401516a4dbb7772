//! Pods out of namespaces, hostile peers and fault injection for tests.
