// A small route agent: publishes routes of a file in the table `routes`, and counts what its clients report of them.
//
//   router SOCKET-DIRECTORY ROUTES
//
// ROUTES has a line for each route, "shop/cart:http 10.0.0.7:80 10.0.0.8:80". A report is "ROUTE ENDPOINT NANOSECONDS". At its end it says
// how many it got for each endpoint, and leaves those counts to its successor, so that an upgrade loses none.
#include <podshm.hpp>

#include <csignal>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

namespace {

using namespace std::chrono_literals;

volatile std::sig_atomic_t stopped = 0;

int failed(const char *what, const podshm::Error &error)
{
    std::cerr << "router: " << what << ": " << error.message() << '\n';
    return 1;
}

// Counts what comes. It is acknowledged when record() returns: what a crash leaves undone comes to the successor.
struct Counter : podshm::Handler {
    std::map<std::string, std::uint64_t> reports;

    void record(const podshm::Record &record) noexcept override
    {
        std::string route, endpoint;
        std::istringstream words{std::string(record.bytes().text())};
        if (words >> route >> endpoint)
            ++reports[route + ' ' + endpoint];
    }

    std::string state() const
    {
        std::ostringstream lines;
        for (const auto &[endpoint, count] : reports)
            lines << endpoint << ' ' << count << '\n';
        return lines.str();
    }

    void inherit(const std::string &state)
    {
        std::istringstream lines(state);
        std::string route, endpoint;
        std::uint64_t count;
        while (lines >> route >> endpoint >> count)
            reports[route + ' ' + endpoint] += count;
    }
};

podshm::Done publish(podshm::Agent &agent, const char *path)
{
    auto table = agent.table("routes");
    if (!table)
        return table.error();
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        auto blank = line.find(' ');
        if (blank == std::string::npos)
            continue;
        if (auto put = table->put_later(line.substr(0, blank), line.substr(blank + 1)); !put)
            return put;
    }
    return table->publish(); // readers see all of it at once
}

int serve(podshm::Agent &agent)
{
    Counter counter;
    bool inherited = false;
    for (;;) {
        auto progress = agent.poll(counter);
        if (!progress)
            return failed("serving", progress.error());
        if (!inherited) {
            auto state = agent.inherited_state(); // PODSHM_NOT_YET while the predecessor still serves
            inherited = state.ok();
            if (state)
                counter.inherit(*state);
        }
        if (stopped || *progress == PODSHM_CLOSE_ASKED)
            break;
        if (*progress == PODSHM_IDLE)
            if (auto waited = agent.wait(20ms); !waited)
                return failed("waiting", waited.error());
    }
    std::string state = counter.state();
    if (auto closed = agent.close(state); !closed)
        return failed("closing", closed.error());
    std::cout << state;
    return 0;
}

} // namespace

int main(int argc, char **argv)
{
    if (argc != 3) {
        std::cerr << "usage: router SOCKET-DIRECTORY ROUTES\n";
        return 2;
    }
    for (int signal : {SIGTERM, SIGINT})
        std::signal(signal, [](int) { stopped = 1; });
    podshm::Builder offer;
    offer.table("routes", 1000, 1 << 20).queue("reports", 512);
    auto agent = offer.connect(argv[1], 5s);
    if (!agent)
        return failed("connecting", agent.error());
    if (auto published = publish(*agent, argv[2]); !published)
        return failed("publishing", published.error());
    if (auto ready = agent->ready(); !ready)
        return failed("taking over", ready.error());
    return serve(*agent);
}
