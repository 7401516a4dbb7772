//! Prints the custom resource's definition, as the chart has it: `scripts/manifests`.
#![forbid(unsafe_code)]

fn main() {
    print!("{}", podshm_api::crd::text());
}
