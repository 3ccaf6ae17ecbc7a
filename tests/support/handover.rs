//! Plays the commands of a model's unit that hand over and take: `give FILE` gives the handover that stands in FILE as JSON, `take`
//! writes what it was given and who it is, and stays; `verify NAME FILE` makes sure of the model's container and writes its main
//! process.

use std::{
    env,
    error::Error,
    fs,
    io::{self, Write},
};

use portreeve::{
    act::interrupt::Interrupt,
    config::{self, Sources},
    host::Host,
    ident::ModelName,
    models::{
        handover::{self, Handover},
        launch::{self, Order, Sight},
    },
};
use serde_json::json;

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["give", file] => {
            let handover: Handover = serde_json::from_slice(&fs::read(file)?)?;
            Ok(handover::give(&handover)?)
        }
        ["take"] => {
            let taken = handover::take()?;
            let again = handover::take()?.is_some();
            let uid = rustix::process::geteuid().as_raw();
            let names = env::var("LISTEN_FDNAMES").ok();
            let said = json!({ "taken": taken, "again": again, "uid": uid, "names": names });
            serde_json::to_writer(io::stdout(), &said)?;
            io::stdout().flush()?;
            loop {
                std::thread::park();
            }
        }
        ["verify", name, file] => {
            let Handover { spec, chosen, instance, .. } = serde_json::from_slice(&fs::read(file)?)?;
            let (host, name) = (&Host::live(), &ModelName(name.to_owned()));
            let settings = &config::load(&Sources::default())?.settings;
            let sight = Sight::Whole;
            let order = Order {
                host,
                settings,
                name,
                spec: &spec,
                instance: &instance,
                until: None,
                sight,
            };
            let receipt = launch::verify(order, chosen, &mut Interrupt::install()?, &mut |_| ())?;
            Ok(write!(io::stdout(), "{}", receipt.process.map_or(0, |main| main.key.pid.0))?)
        }
        _ => Err("expected: give FILE, take, verify NAME FILE".into()),
    }
}
