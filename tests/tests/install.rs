//! `make install`, and programs that know nothing but what it installed: the examples in C and C++; and those in Python,
//! which know the wheel.

use podshm_broker::Limits;
use podshm_tests::programs::{module, python};
use podshm_tests::{Node, until};
use rustix::process::{Pid, Signal, kill_process};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

/// Where everything is installed, once for all tests here.
fn prefix() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = Path::new(env!("CARGO_TARGET_TMPDIR")).join("prefix");
        let _ = std::fs::remove_dir_all(&prefix);
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut install = Command::new(root.join("scripts/install.sh"));
        install
            .env("PREFIX", &prefix)
            .env("PROFILE", "dev")
            .env("BUILT", "1")
            // The library is built once more, by zig: as quickly as that goes.
            .envs([("CARGO_PROFILE_DEV_DEBUG", "0"), ("CARGO_PROFILE_DEV_OPT_LEVEL", "0")])
            // As many a packager gives it.
            .env("LIBDIR", prefix.join("lib"))
            .env_remove("DESTDIR");
        let output = install.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        prefix
    })
}

/// Builds an example in a copy of its folder, by its own Makefile.
fn example(name: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples").join(name);
    let copy = Path::new(env!("CARGO_TARGET_TMPDIR")).join("example").join(name);
    let _ = std::fs::remove_dir_all(&copy);
    std::fs::create_dir_all(&copy).unwrap();
    for file in std::fs::read_dir(source)
        .unwrap()
        .map(Result::unwrap)
        .filter(|f| f.path().extension().is_some() || f.file_name() == "Makefile")
    {
        std::fs::copy(file.path(), copy.join(file.file_name())).unwrap();
    }
    // As its first lines say: on the command line, which not every make's $(shell) sees.
    let mut make = Command::new("make");
    make.arg("-C").arg(&copy).arg(format!("PKG_CONFIG_PATH={}", prefix().join("lib/pkgconfig").display()));
    let output = make.args(["CFLAGS=-O1 -Werror", "CXXFLAGS=-O1 -Werror"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let needed = ["-std=c", "-Wall -Wextra -Wpedantic", "-O1 -Werror"];
    assert!(needed.iter().all(|flags| text(&output).contains(flags)), "{}", text(&output));
    copy
}

/// A program that is ended with its test.
struct Running(Child);

impl Running {
    fn start(command: &mut Command) -> Running {
        Running(command.stdout(Stdio::piped()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// What it has said, once it has ended in order.
    fn end(mut self) -> String {
        let mut status = None;
        until("the program ends", || {
            std::thread::sleep(std::time::Duration::from_millis(5));
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.0.stdout.take().unwrap(), &mut said).unwrap();
        assert!(status.unwrap().success(), "{status:?}: {said}");
        said
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn everything_is_where_a_packager_expects_it() {
    let prefix = prefix();
    for file in [
        "bin/podshm",
        "bin/podshm-route-agent",
        "bin/podshm-guard-agent",
        "lib/libpodshm.so",
        "lib/libpodshm.so.0",
        "lib/libpodshm.a",
        "include/podshm.h",
        "include/podshm.hpp",
        "share/man/man1/podshm.1",
        "share/man/man1/podshm-broker.1",
        "share/man/man1/podshm-guard-agent.1",
        "share/man/man1/podshm-route-agent.1",
        "share/bash-completion/completions/podshm",
        "share/bash-completion/completions/podshm-guard-agent",
        "share/bash-completion/completions/podshm-route-agent",
        "share/zsh/site-functions/_podshm",
        "share/zsh/site-functions/_podshm-guard-agent",
        "share/zsh/site-functions/_podshm-route-agent",
        "share/fish/vendor_completions.d/podshm.fish",
        "share/fish/vendor_completions.d/podshm-guard-agent.fish",
        "share/fish/vendor_completions.d/podshm-route-agent.fish",
        "share/doc/podshm/c-abi.md",
        "share/doc/podshm/guard.md",
    ] {
        let found = std::fs::metadata(prefix.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert!(found.is_file() && found.len() > 100, "{file}: {} bytes", found.len());
    }
    let page = std::fs::read_to_string(prefix.join("share/man/man1/podshm-broker.1")).unwrap();
    assert!(page.contains(".TH") && page.contains("rejoin\\-grace\\-ms"), "{page}");
    assert!(!prefix.join("share/man/man1/podshm-pages.1").exists(), "what is hidden has no page");
    let mut asked = Command::new("pkg-config");
    let said =
        asked.args(["--modversion", "podshm"]).env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).output().unwrap();
    assert_eq!(text(&said).trim(), env!("CARGO_PKG_VERSION"));
}

/// Help, man page and completions say the same, and bash completes by it. (Of zsh and fish, which few machines have, only the text is looked at.)
#[test]
fn each_program_has_its_help_as_a_page_and_as_completions() {
    for (program, begun, whole) in [
        ("podshm", "bro", "broker"),
        ("podshm-route-agent", "--endp", "--endpointslices"),
        ("podshm-guard-agent", "--last", "--last-good"),
    ] {
        let share = |file: String| std::fs::read_to_string(prefix().join("share").join(file)).unwrap();
        let help = text(&Command::new(prefix().join("bin").join(program)).arg("--help").output().unwrap());
        assert!(help.contains(whole), "{program}: {help}");
        let page = share(format!("man/man1/{program}.1"));
        assert!(page.contains(&format!(".TH {program} ")) && page.contains(&whole.replace('-', "\\-")), "{page}");
        let zsh = share(format!("zsh/site-functions/_{program}"));
        assert!(zsh.starts_with(&format!("#compdef {program}\n")) && zsh.contains(whole), "{zsh}");
        let fish = share(format!("fish/vendor_completions.d/{program}.fish"));
        let named = whole.trim_start_matches('-');
        assert!(fish.contains(&format!("complete -c {program} ")) && fish.contains(named), "{fish}");
        let completions = prefix().join("share/bash-completion/completions").join(program);
        let asks = r#"source "$1" && f=$(complete -p "$2") && f=${f##*-F } && COMP_WORDS=("$2" "$3") COMP_CWORD=1 &&
            "${f%% *}" "$2" "$3" "$2" && echo "${COMPREPLY[@]}""#;
        let said = Command::new("bash").args(["-c", asks, "bash"]).arg(completions).args([program, begun]).output();
        assert_eq!(text(&said.unwrap()).trim(), whole, "{program}");
    }
}

/// Nothing is written elsewhere; what is given as an absolute path below the prefix is the folder there.
#[test]
fn a_library_folder_outside_of_the_prefix_is_refused() {
    let (root, prefix) = (Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap(), prefix());
    let install = |libdir: &str| {
        let mut install = Command::new(root.join("scripts/install.sh"));
        install
            .env("PREFIX", prefix)
            .env("LIBDIR", libdir)
            .env("BUILT", "1")
            .env("PROFILE", "dev")
            .env_remove("DESTDIR");
        install.output().unwrap()
    };
    for outside in ["/opt/lib", "/", "../lib", "lib/../../lib"] {
        let said = install(outside);
        assert!(!said.status.success() && text(&said).contains("LIBDIR is"), "{outside}: {}", text(&said));
    }
}

/// Version 2.17 of glibc is of 2012: what enterprises run is younger. Without zig this fails, as `make install` says it will.
#[test]
fn the_library_needs_no_glibc_above_2_17() {
    let mut readelf = Command::new("readelf");
    let said = text(&readelf.arg("-VW").arg(prefix().join("lib/libpodshm.so")).output().unwrap());
    let version = |word: &str| {
        let mut parts = word.strip_prefix("GLIBC_")?.split('.').map_while(|part| part.parse::<u32>().ok());
        Some((parts.next()?, parts.next()?))
    };
    let needed = said.split_whitespace().filter_map(version).max().expect("it needs a glibc");
    assert!(needed <= (2, 17), "GLIBC_{}.{}", needed.0, needed.1);
    let symbols = text(&Command::new("nm").args(["-D"]).arg(prefix().join("lib/libpodshm.so")).output().unwrap());
    let defined = |line: &&str| line.split_whitespace().nth_back(1).is_some_and(|kind| "TBDRVW".contains(kind));
    let others = symbols.lines().filter(defined).filter(|line| !line.contains(" podshm_"));
    let others: Vec<&str> = others.collect();
    assert!(others.is_empty(), "what it exports beside podshm_*: {others:?}");
}

/// What `make install` says of glibc is looked for in what it built: here in programs that this machine's linker made.
#[test]
fn what_needs_a_newer_glibc_than_is_said_is_refused() {
    let looks = |allowed: &str, file: &Path| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("scripts/glibc-needs");
        let output = Command::new(script).arg(allowed).arg(file).output().unwrap();
        (output.status.success(), text(&output))
    };
    let library = prefix().join("lib/libpodshm.so");
    assert!(looks("2.17", &library).0, "{}", looks("2.17", &library).1);
    for (file, symbol) in [("bin/podshm", "@GLIBC_2."), ("bin/podshm-guard-agent", "@GLIBC_2.")] {
        let file = prefix().join(file);
        let (good, said) = looks("2.17", &file);
        let wanted = ["expected to need no glibc above 2.17", symbol, file.to_str().unwrap()];
        assert!(!good && wanted.iter().all(|words| said.contains(words)), "{said}");
        assert!(looks("any", &file).0 && looks("2.999", &file).0);
    }
    // Not by a symbol, but by how it is linked.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("relr");
    std::fs::create_dir_all(&directory).unwrap();
    let (source, packed) = (directory.join("p.c"), directory.join("p.so"));
    std::fs::write(&source, "#include <stdio.h>\nstatic int a; int *p = &a; void f(void) { puts(\"\"); }\n").unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wl,-z,pack-relative-relocs", "-o"]).arg(&packed).arg(&source);
    assert!(cc.status().unwrap().success());
    let (good, said) = looks("2.17", &packed);
    assert!(!good && said.contains("needs glibc 2.36") && said.contains("its relocations"), "{said}");
    let (good, said) = looks("2", &packed);
    assert!(!good && said.contains("expected a version"), "{said}");
}

/// The static library, too, links by what pkg-config says.
#[test]
fn a_program_links_statically() {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("static");
    std::fs::create_dir_all(&directory).unwrap();
    let (source, program) = (directory.join("version.c"), directory.join("version"));
    std::fs::write(
        &source,
        "#include <podshm.h>\n#include <stdio.h>\nint main(void) { puts(podshm_version()); return 0; }\n",
    )
    .unwrap();
    let flags = Command::new("pkg-config")
        .args(["--static", "--cflags", "--libs", "podshm"])
        .env("PKG_CONFIG_PATH", prefix().join("lib/pkgconfig"))
        .output();
    let flags = text(&flags.unwrap());
    // With both libraries there, -lpodshm is the shared one: the word for the other is the linker's.
    let flags = flags.split_whitespace().map(|flag| if flag == "-lpodshm" { "-l:libpodshm.a" } else { flag });
    let mut cc = Command::new("cc");
    let output = cc.arg(&source).args(flags).arg("-o").arg(&program).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let needed = text(&Command::new("readelf").arg("-d").arg(&program).output().unwrap());
    assert!(!needed.contains("libpodshm"), "{needed}");
    assert_eq!(text(&Command::new(program).output().unwrap()).trim(), env!("CARGO_PKG_VERSION"));
}

#[test]
fn the_example_in_c_guards() {
    let built = example("c");
    let node = Node::new(Limits::default());
    let rules = built.join("rules");
    std::fs::write(&rules, "# who may what\nallow test/cart read orders\nallow test/bank * *\n").unwrap();
    let guard = Running::start(Command::new(built.join("guard")).arg(node.pod("agent")).arg(&rules));
    let ask = |pod: &str, action: &str, resource: &str| {
        let output = Command::new(built.join("ask")).arg(node.pod(pod)).args([action, resource]).output().unwrap();
        (output.status.code().unwrap(), text(&output).trim().to_owned())
    };
    let (allow, deny) = ((0, "allow".to_owned()), (1, "deny".to_owned()));
    assert_eq!(ask("cart", "read", "orders"), allow);
    assert_eq!(ask("cart", "write", "orders"), deny);
    assert_eq!(ask("bank", "write", "orders"), allow);
    std::fs::write(&rules, "alow test/cart write orders\n").unwrap();
    guard.signal(Signal::HUP);
    assert_eq!(ask("cart", "read", "orders"), allow, "rules that make no sense change nothing");
    std::fs::write(&rules, "allow test/cart write orders\n").unwrap();
    guard.signal(Signal::HUP);
    until("the new rules hold", || ask("cart", "write", "orders") == allow);
    assert_eq!(ask("cart", "read", "orders"), deny);
    let output =
        Command::new(built.join("ask")).arg(node.pod("cart")).args(["write", "orders", "1000"]).output().unwrap();
    assert!(text(&output).contains("ns each"), "{}", text(&output));
    node.settle("whoever asked has left", |s| s.clients.is_empty());
    guard.signal(Signal::TERM);
    guard.end();
    node.settle("the guard has left", |s| !s.agent);
}

#[test]
fn the_example_in_cpp_looks_routes_up_and_an_upgrade_loses_no_report() {
    let built = example("cpp");
    let node = Node::new(Limits::default());
    let routes = built.join("routes.txt");
    std::fs::write(&routes, "shop/cart:http 10.0.0.7:80 10.0.0.8:80\nshop/pay:http 10.0.0.9:80\n").unwrap();
    let router = || Running::start(Command::new(built.join("router")).arg(node.pod("agent")).arg(&routes));
    let look = |route: &str, times: &str| {
        let output = Command::new(built.join("routes")).arg(node.pod("shop")).args([route, times]).output().unwrap();
        (output.status.success(), text(&output).trim().to_owned())
    };
    let first = router();
    // Fewer than its queue has room for.
    assert_eq!(look("shop/cart:http", "400"), (true, "400 looked up, 0 reports dropped".into()));
    assert_eq!(look("shop/none:http", "1"), (false, "routes: there is no route shop/none:http".into()));
    let second = router();
    let of_first = first.end();
    assert_eq!(of_first, "shop/cart:http 10.0.0.7:80 200\nshop/cart:http 10.0.0.8:80 200\n");
    assert_eq!(look("shop/pay:http", "10"), (true, "10 looked up, 0 reports dropped".into()));
    node.settle("all is drained", |s| s.clients.is_empty());
    second.signal(Signal::TERM);
    assert_eq!(second.end(), of_first + "shop/pay:http 10.0.0.9:80 10\n");
}

/// The wheel and the examples in Python, installed by pip into a directory of their own: with numpy, all that they have.
fn site() -> &'static Path {
    static SITE: OnceLock<PathBuf> = OnceLock::new();
    SITE.get_or_init(|| {
        let (module, tmp) = (module(), Path::new(env!("CARGO_TARGET_TMPDIR")));
        let (site, copies) = (tmp.join("site"), tmp.join("example/python"));
        let _ = (std::fs::remove_dir_all(&site), std::fs::remove_dir_all(&copies));
        let mut pip = Command::new(python());
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index"]);
        pip.args(["--no-build-isolation", "--target"]).arg(&site);
        let files = |directory: &Path| std::fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
        pip.args(files(&module).filter(|path| path.extension().is_some_and(|end| end == "whl")));
        for name in ["guard-ask", "meter"] {
            let copy = copies.join(name);
            std::fs::create_dir_all(&copy).unwrap();
            for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/python").join(name)) {
                std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
            }
            pip.arg(copy);
        }
        let output = pip.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        site
    })
}

/// A program that pip installed.
fn in_python(name: &str) -> Command {
    let mut command = Command::new(site().join("bin").join(name));
    command.env("PYTHONPATH", site()).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

#[test]
fn the_example_with_asyncio_asks_the_guard_agent() {
    let node = Node::new(Limits::default());
    let policies = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies");
    let mut guard = Command::new(prefix().join("bin/podshm-guard-agent"));
    let guard = Running::start(guard.arg("--socket-dir").arg(node.pod("agent")).arg("--policies").arg(policies));
    let ask = |resource: &str, principals: &[&str]| {
        let mut command = in_python("guard-ask");
        command.arg(node.pod("cart")).args([r#"Action::"read""#, resource]).args(principals);
        let output = command.output().unwrap();
        let mut lines: Vec<String> = text(&output).lines().map(str::to_owned).collect();
        lines.sort_unstable();
        (output.status.code().unwrap(), lines)
    };
    let (alice, bob, plan) = (r#"User::"alice""#, r#"User::"bob""#, r#"Document::"plan""#);
    let said = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect::<Vec<_>>();
    let allowed = format!("{alice}: allow (staff-reads)");
    assert_eq!(ask(plan, &[alice]), (0, said(&[&allowed])));
    assert_eq!(ask(plan, &[bob, alice]), (1, said(&[&allowed, &format!("{bob}: deny")])));
    let many = ask(plan, &[alice; 50]);
    assert_eq!(many, (0, vec![allowed; 50]));
    let (code, lines) = ask("plan", &[alice]);
    assert!(code == 2 && lines[0].contains("no verdict"), "{lines:?}");
    guard.signal(Signal::TERM);
    assert!(guard.end().contains("allowed="));
}

#[test]
fn the_example_with_numpy_hands_arrays_on() {
    let node = Node::new(Limits::default());
    let serve = || Running::start(in_python("meter").arg("serve").arg(node.pod("agent")));
    let run = |arguments: &[&str]| {
        let mut command = in_python("meter");
        command.arg(arguments[0]).arg(node.pod("shop")).args(&arguments[1..]);
        let output = command.output().unwrap();
        (output.status.success(), text(&output).trim().to_owned())
    };
    let first = serve();
    assert_eq!(run(&["report", "shop/cart:http", "100"]), (true, "6400 latencies reported".into()));
    // Reports are accepted before they are summed.
    let shown = "shop/cart:http 6400 ";
    until("all is summed", || run(&["show", "shop/cart:http"]).1.starts_with(shown));
    let (good, said) = run(&["show", "shop/none"]);
    assert!(!good && said.contains("nobody has reported"), "{said}");
    first.signal(Signal::TERM);
    first.end();
}
