#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| keyfold_tests::fuzzing::csi_request(data));
