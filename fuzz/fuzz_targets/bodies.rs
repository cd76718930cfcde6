//! See `runwal_fuzz::bodies`.

#![cfg_attr(fuzzing, no_main)]

runwal_fuzz::target!(bodies);
