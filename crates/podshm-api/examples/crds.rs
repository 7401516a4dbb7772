//! Prints a custom resource's definition, by its plural name, as the chart has it: `scripts/manifests`.
#![forbid(unsafe_code)]

fn main() {
    let plural = std::env::args().nth(1).unwrap_or_default();
    match podshm_api::crd::text(&plural) {
        Some(text) => print!("{text}"),
        None => {
            eprintln!("expected one of {:?}, found {plural:?}", podshm_api::crd::KINDS);
            std::process::exit(2);
        }
    }
}
