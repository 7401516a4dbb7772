//! An agent or a client in a process of its own, for tests that stop and kill it:
//! `podshm-test-participant agent|agent+N|growing-agent|client DIRECTORY FILE NUMBER`, PODSHM_STEP, PODSHM_TEST_LAYOUTS and PODSHM_TEST_LEAKS.
//! Tests of other releases run this program as they find it here: its arguments and its file formats stay.

use podshm_tests::roles::Variant;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    podshm::steps::arm_from_env().expect("PODSHM_STEP can be read");
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [role, directory, file, number] = &args[..] else {
        eprintln!("expected a role, a directory, a file and a number, found {args:?}");
        return ExitCode::from(2);
    };
    let (directory, file) = (PathBuf::from(directory), PathBuf::from(file));
    let number = number.parse().expect("a number");
    podshm_tests::roles::leak_when_told(&file);
    let agent = |variant| podshm_tests::roles::agent(&directory, &file, number, variant);
    let ended = match role.split('+').collect::<Vec<_>>()[..] {
        ["agent"] => agent(Variant::default()),
        ["agent", more] => agent(Variant { more: more.parse().expect("a number"), ..Variant::default() }),
        ["growing-agent"] => agent(Variant { grows: true, ..Variant::default() }),
        ["client"] => podshm_tests::roles::client(&directory, &file, number),
        ref other => panic!("no role {other:?}"),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == podshm::ErrorKind::Refused => ExitCode::from(podshm_tests::participant::REFUSED),
        Err(error) => {
            eprintln!("{role} {number}: {error}");
            ExitCode::FAILURE
        }
    }
}
