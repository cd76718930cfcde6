//! See `runwal_fuzz::escaping`.

#![cfg_attr(fuzzing, no_main)]

runwal_fuzz::target!(escaping);
