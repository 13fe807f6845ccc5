// Many nodes of a fleet in one process: real publishers, and what the nodes have is plain data.
// fleet_scale.py runs it beside a real etcd.
//
// Arguments: etcd's URL, the number of nodes, and of forwards of each, ten to an instance. Each line of
// standard input is an order; it is answered by a line with the seconds that it took:
//   join           all nodes begin to publish, until etcd has everything
//   wait           until all nodes are registered and have nothing to write
//   change N       N forwards, of random nodes, change; until etcd has that
//   vanish N       N nodes are there no more
//   sleep SECONDS
//   stats          instead of the time: what the publishers have done, as JSON
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <boost/asio/io_context.hpp>
#include <chrono>
#include <cstdlib>
#include <functional>
#include <iostream>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "tests/fleet/fake_node.h"

namespace portway::test {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kForwardsOfAnInstance = 10;

class Fleet {
 public:
  Fleet(std::string url, int nodes, int forwards) : url_(std::move(url)) {
    for (int i = 0; i < nodes; ++i) {
      auto node = std::make_unique<FakeNode>(fmt::format("node-{:05}", i));
      for (int k = 0; k < forwards; ++k) {
        const std::string instance = fmt::format("vm-{:05}-{:03}", i, k / kForwardsOfAnInstance);
        if (k % kForwardsOfAnInstance == 0) {
          node->put(instance);
          node->change(instance, std::string(400, 'x'));  // about the size of a real one
        }
        forwards_.push_back({node.get(), instance, node->forward(instance, std::string(600, 'x'))});
      }
      nodes_.push_back(std::move(node));
    }
  }

  void join() {
    PublisherOptions options;
    options.etcd.endpoints = {url_};
    options.etcd.request_timeout = std::chrono::seconds(30);
    for (const auto& node : nodes_) node->join(context_.get_executor(), options);
    wait();
  }

  void wait() {
    run_until([this] {
      for (const auto& node : nodes_) {
        const PublisherStats stats = node->publisher().stats();
        if (!stats.registered || stats.listings == 0 || stats.pending != 0) return false;
      }
      return true;
    });
  }

  void change(int count) {
    for (int i = 0; i < count; ++i) {
      const Place& place = forwards_[random_() % forwards_.size()];
      place.node->change_forward(place.instance, place.forward, fmt::format("{:0600}", ++changes_));
    }
    wait();
  }

  void vanish(int count) {
    for (int i = 0; i < count && !nodes_.empty(); ++i) {
      std::erase_if(forwards_, [&](const Place& place) { return place.node == nodes_.back().get(); });
      nodes_.pop_back();
    }
  }

  void sleep(int seconds) {
    const auto until = Clock::now() + std::chrono::seconds(seconds);
    run_until([until] { return Clock::now() >= until; });
  }

  std::string stats() const {
    PublisherStats sum;
    std::size_t faults = 0;
    for (const auto& node : nodes_) {
      const PublisherStats stats = node->publisher().stats();
      sum.writes += stats.writes;
      sum.writes_failed += stats.writes_failed;
      sum.listings += stats.listings;
      sum.registrations += stats.registrations;
      faults += node->faults.size();
    }
    return fmt::format(
        R"({{"writes": {}, "writes_failed": {}, "listings": {}, "registrations": {}, "faults": {}}})",
        sum.writes, sum.writes_failed, sum.listings, sum.registrations, faults);
  }

 private:
  struct Place {
    FakeNode* node;
    std::string instance;
    ForwardId forward;
  };

  void run_until(const std::function<bool()>& is_true) {
    do {
      context_.restart();
      context_.run_for(std::chrono::milliseconds(10));
    } while (!is_true());
  }

  const std::string url_;
  boost::asio::io_context context_{1};
  std::vector<std::unique_ptr<FakeNode>> nodes_;
  std::vector<Place> forwards_;
  std::mt19937 random_{1};
  std::uint64_t changes_ = 0;
};

int serve(Fleet& fleet) {
  std::string line;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    std::string order;
    int number = 0;
    words >> order >> number;
    const auto began = Clock::now();
    if (order == "join") {
      fleet.join();
    } else if (order == "wait") {
      fleet.wait();
    } else if (order == "change") {
      fleet.change(number);
    } else if (order == "vanish") {
      fleet.vanish(number);
    } else if (order == "sleep") {
      fleet.sleep(number);
    } else if (order == "stats") {
      std::cout << fleet.stats() << std::endl;
      continue;
    } else {
      std::cerr << "unknown order: " << line << "\n";
      return 2;
    }
    std::cout << std::chrono::duration<double>(Clock::now() - began).count() << std::endl;
  }
  return 0;
}

}  // namespace
}  // namespace portway::test

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: portway_fleet_scale ETCD-URL NODES FORWARDS\n";
    return 2;
  }
  spdlog::set_level(spdlog::level::err);
  portway::test::Fleet fleet(argv[1], std::atoi(argv[2]), std::atoi(argv[3]));
  return portway::test::serve(fleet);
}
