//! The verdict table, row by row: it decides, it does not where one of its conditions fails, and no fact that
//! it needs and that could not be read lets it convict.

mod containers;
mod explain;
mod gate;
mod gpus;
mod guards;
mod law;
mod ports;
mod rows;
mod scene;
