#![no_main]

portreeve_fuzz::target!("logs");
