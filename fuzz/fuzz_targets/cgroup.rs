#![no_main]

portreeve_fuzz::target!("cgroup");
