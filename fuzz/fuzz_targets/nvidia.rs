#![no_main]

portreeve_fuzz::target!("nvidia");
