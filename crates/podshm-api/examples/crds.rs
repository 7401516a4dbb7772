//! Prints the custom resource's definition, as the chart has it: `scripts/manifests`.

fn main() {
    print!("{}", podshm_api::crd::text());
}
