//! See `runwal_fuzz::frames`.

#![cfg_attr(fuzzing, no_main)]

runwal_fuzz::target!(frames);
