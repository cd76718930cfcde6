//! See `runwal_fuzz::directory`.

#![cfg_attr(fuzzing, no_main)]

runwal_fuzz::target!(directory);
