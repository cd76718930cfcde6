//! See `runwal_fuzz::arguments`.

#![cfg_attr(fuzzing, no_main)]

runwal_fuzz::target!(arguments);
