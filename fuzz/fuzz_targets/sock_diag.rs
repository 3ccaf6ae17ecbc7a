#![no_main]

portreeve_fuzz::target!("sock_diag");
