//! See `runwal_fuzz::decoders`.

#![cfg_attr(fuzzing, no_main)]

runwal_fuzz::target!(decoders);
