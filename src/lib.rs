//! sekexe-ci
