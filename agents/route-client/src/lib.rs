//! What a business program uses to pick endpoints and report on them.
