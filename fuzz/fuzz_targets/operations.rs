//! See `runwal_fuzz::operations`.

#![cfg_attr(fuzzing, no_main)]

runwal_fuzz::target!(operations);
