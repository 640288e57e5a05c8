//! Part of simmim; see ARCHITECTURE.md.
