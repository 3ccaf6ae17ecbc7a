#![no_main]

portreeve_fuzz::target!("kept");
