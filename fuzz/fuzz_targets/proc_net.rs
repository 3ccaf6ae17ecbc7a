#![no_main]

portreeve_fuzz::target!("proc_net");
