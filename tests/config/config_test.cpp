#include "config/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

#include "config/config_keys.h"

namespace portway {
namespace {

Config parsed(std::string_view text, std::span<const Override> overrides = {}) {
  auto config = parse_config(text, "portway.toml", overrides);
  EXPECT_TRUE(config) << config.error().detail;
  return config ? *config : Config{};
}

/// The detail of the error that `text` makes; also checks the code and the field.
std::string refusal(std::string_view text, std::string_view field, std::span<const Override> overrides = {}) {
  const auto config = parse_config(text, "portway.toml", overrides);
  if (config) return "it was accepted";
  EXPECT_EQ(config.error().code, ErrorCode::kInvalidConfig);
  EXPECT_EQ(config.error().field, field);
  return config.error().detail;
}

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Config, AnEmptyFileMeansTheDefaults) {
  const Config config = parsed("");
  char name[256] = {};
  ASSERT_EQ(gethostname(name, sizeof name - 1), 0);
  EXPECT_EQ(config.node.public_hostname, name);
  EXPECT_EQ(to_string(config.api.listen.at(0).address), "127.0.0.1:8080");
  EXPECT_EQ(config.api.rate_limit_per_second, 200U);
  EXPECT_EQ(config.api.rate_limit_burst, 1000U);
  EXPECT_EQ(config.api.wrong_keys_per_minute, 60U);
  EXPECT_EQ(config.api.body_max_bytes, 65536U);
  EXPECT_FALSE(config.metrics.listen);
  EXPECT_EQ(config.ports.range, (PortRange{20000, 32767}));
  EXPECT_TRUE(config.guests.networks.empty());
  EXPECT_EQ(config.guests.netns_directories, std::vector<std::string>{"/run/netns"});
  EXPECT_EQ(config.profiles.at("default").max_forwarded_ports, 5U);
  EXPECT_EQ(config.store.path, "/var/lib/portway/portway.db");
  EXPECT_EQ(config.proxy.connections_max, 65536U);
}

TEST(Config, EveryKeyCanBeSet) {
  const Config config = parsed(R"(
    [node]
    public_hostname = "compute-1.example.com"
    public_addresses = ["203.0.113.7", "2001:db8::7"]
    [api]
    listen = "[::1]:9000"
    admin_key_file = "/run/portway/key"
    rate_limit_per_second = 7
    rate_limit_burst = 70
    wrong_keys_per_minute = 8
    body_max_bytes = 2048
    [metrics]
    listen = "127.0.0.1:9100"
    [ports]
    range = "30000-30999"
    [guests]
    networks = ["198.18.0.0/15", "fd00::/8"]
    netns_directories = ["/run/netns", "/srv/sandboxes/netns"]
    [profiles.default]
    max_forwarded_ports = 10
    [profiles.large]
    max_forwarded_ports = 100
    max_connections = 100
    max_connections_per_source = 10
    max_new_connections_per_second = 20
    max_bytes_per_second = 1000000000000
    idle_timeout_s = 60
    [profiles.like_default]
    [store]
    path = "/tmp/p.db"
    [proxy]
    workers = 2
    io_backend = "epoll"
    source_mode = "plain"
    source_rule_preference = 1200
    source_route_table = 4294967295
    source_mark_bit = 0
    connections_max = 100
    connect_timeout_ms = 250
    half_close_timeout_s = 60
    keepalive_s = 0
    idle_timeout_s = 600
    drain_timeout_s = 5
    pipes_max = 64
  )");
  EXPECT_EQ(config.node.public_hostname, "compute-1.example.com");
  ASSERT_EQ(config.node.public_addresses.size(), 2U);
  EXPECT_EQ(config.node.public_addresses[1].to_string(), "2001:db8::7");
  EXPECT_EQ(to_string(config.api.listen.at(0).address), "[::1]:9000");
  EXPECT_EQ(config.api.admin_key_file, "/run/portway/key");
  EXPECT_EQ(config.api.rate_limit_per_second, 7U);
  EXPECT_EQ(config.api.rate_limit_burst, 70U);
  EXPECT_EQ(config.api.wrong_keys_per_minute, 8U);
  EXPECT_EQ(config.api.body_max_bytes, 2048U);
  ASSERT_TRUE(config.metrics.listen);
  EXPECT_EQ(to_string(*config.metrics.listen), "127.0.0.1:9100");
  EXPECT_EQ(config.ports.range, (PortRange{30000, 30999}));
  ASSERT_EQ(config.guests.networks.size(), 2U);
  EXPECT_EQ(config.guests.networks[0].to_string(), "198.18.0.0/15");
  EXPECT_EQ(config.guests.netns_directories,
            (std::vector<std::string>{"/run/netns", "/srv/sandboxes/netns"}));
  ASSERT_EQ(config.profiles.size(), 3U);
  EXPECT_EQ(config.profiles.at("default").max_forwarded_ports, 10U);
  EXPECT_EQ(config.profiles.at("large").max_forwarded_ports, 100U);
  EXPECT_EQ(config.profiles.at("large").limits, (TrafficLimits{.allowed_cidrs = {},
                                                               .max_connections = 100,
                                                               .max_connections_per_source = 10,
                                                               .max_new_connections_per_second = 20,
                                                               .max_bytes_per_second = 1'000'000'000'000,
                                                               .idle_timeout = std::chrono::seconds(60)}));
  EXPECT_EQ(config.profiles.at("like_default").limits, TrafficLimits{});
  EXPECT_EQ(config.profiles.at("like_default").max_forwarded_ports, 5U);
  EXPECT_EQ(config.store.path, "/tmp/p.db");
  EXPECT_EQ(config.proxy.workers, 2U);
  EXPECT_EQ(config.proxy.io_backend, IoBackend::kEpoll);
  EXPECT_EQ(config.proxy.source_mode, SourceMode::kPlain);
  EXPECT_EQ(config.proxy.source_rule_preference, 1200U);
  EXPECT_EQ(config.proxy.source_route_table, 4294967295U);
  EXPECT_EQ(config.proxy.source_mark_bit, 0U);
  EXPECT_EQ(config.proxy.connections_max, 100U);
  EXPECT_EQ(config.proxy.connect_timeout, std::chrono::milliseconds(250));
  EXPECT_EQ(config.proxy.half_close_timeout, std::chrono::seconds(60));
  EXPECT_EQ(config.proxy.keepalive, std::chrono::seconds(0));
  EXPECT_EQ(config.proxy.idle_timeout, std::chrono::seconds(600));
  EXPECT_EQ(config.proxy.drain_timeout, std::chrono::seconds(5));
  EXPECT_EQ(config.proxy.pipes_max, 64U);
}

TEST(Config, TheReferenceFileMentionsEveryKeyAndMeansTheDefaults) {
  const std::string reference = config_reference();
  for (const ConfigKey& key : config_keys()) {
    const std::string name = default_name(key);
    EXPECT_NE(reference.find("\n" + name.substr(name.rfind('.') + 1) + " = "), std::string::npos) << name;
  }
  EXPECT_EQ(parsed(reference), parsed(""));
  if (std::getenv("PORTWAY_UPDATE_REFERENCE") != nullptr) std::ofstream(PORTWAY_REFERENCE) << reference;
  EXPECT_EQ(read_file(PORTWAY_REFERENCE), reference) << "config/portway.toml is made from the table of keys: "
                                                        "run this test with PORTWAY_UPDATE_REFERENCE=1 set";
}

TEST(Config, AnUnknownKeyIsRefusedWithItsPlaceAndTheClosestKnownOne) {
  EXPECT_EQ(refusal("[api]\n\nlissten = \"127.0.0.1:80\"\n", "api.lissten"),
            "portway.toml:3: unknown key \"api.lissten\"; did you mean api.listen?");
  EXPECT_EQ(refusal("[metric]\nlisten = \"\"\n", "metric"),
            "portway.toml:1: unknown table \"metric\"; did you mean metrics?");
  EXPECT_EQ(refusal("max_forwarded_ports = 3\n", "max_forwarded_ports"),
            "portway.toml:1: unknown key \"max_forwarded_ports\"; did you mean "
            "profiles.default.max_forwarded_ports?");
  EXPECT_EQ(refusal("[profiles.small]\nmax_forwarded_port = 3\n", "profiles.small.max_forwarded_port"),
            "portway.toml:2: unknown key \"profiles.small.max_forwarded_port\"; did you mean "
            "profiles.small.max_forwarded_ports?");
}

TEST(Config, AKeyLikeNoOtherIsAnsweredWithTheKeysThereAre) {
  EXPECT_EQ(refusal("[api]\ncolor_of_the_shed = \"x\"\n", "api.color_of_the_shed"),
            "portway.toml:2: unknown key \"api.color_of_the_shed\"; the keys of [api] are admin_key_file, "
            "admin_uids, allow_guests, body_max_bytes, client_ca, listen, rate_limit_burst, "
            "rate_limit_per_second, tls_certificate, tls_private_key, wrong_keys_per_minute");
  EXPECT_EQ(refusal("[database]\nurl = 1\n", "database"),
            "portway.toml:1: unknown table \"database\"; the tables are api, fleet, gateway, guests, log, "
            "metrics, node, owners, ports, process, profiles.default, proxy, store");
}

TEST(Config, ACertificateAndItsKeyAreSetTogether) {
  EXPECT_EQ(refusal("[gateway]\nnode_tls_certificate = \"/a\"\n", "gateway.node_tls_certificate"),
            "portway.toml:2: gateway.node_tls_certificate: needs its private key; set "
            "gateway.node_tls_private_key too");
  EXPECT_EQ(refusal("[fleet]\netcd_tls_private_key = \"/a\"\n", "fleet.etcd_tls_private_key"),
            "portway.toml:2: fleet.etcd_tls_private_key: needs its certificate; set "
            "fleet.etcd_tls_certificate too");
}

TEST(Config, KnowsWhichKeysAreBesideSomeTables) {
  const std::array<std::string_view, 3> tables = {"api", "fleet", "node"};
  const auto beside = [&](std::string_view text) {
    return key_beside(parse_config(text, "portway.toml").value(), tables);
  };
  EXPECT_EQ(beside(""), "");
  EXPECT_EQ(beside("[api]\nlisten = \"127.0.0.1:1\"\n[fleet]\nlease_ttl_s = 20\n"), "");
  EXPECT_EQ(beside("[ports]\nrange = \"20000-32767\"\n"), "") << "the default";
  EXPECT_EQ(beside("[ports]\nrange = \"30000-31000\"\n"), "ports.range");
  EXPECT_EQ(beside("[profiles.default]\nmax_forwarded_ports = 7\n"), "profiles.default.max_forwarded_ports");
  EXPECT_EQ(beside("[profiles.large]\nmax_forwarded_ports = 7\n"), "profiles");
}

TEST(Config, AWrongTypeIsRefusedWithAnExample) {
  EXPECT_EQ(refusal("[api]\nbody_max_bytes = \"64k\"\n", "api.body_max_bytes"),
            "portway.toml:2: api.body_max_bytes: must be an integer like 65536, not a string");
  EXPECT_EQ(refusal("api.listen = 8080\n", "api.listen"),
            "portway.toml:1: api.listen: must be a string like \"127.0.0.1:8080\", not an integer");
  EXPECT_EQ(
      refusal("node.public_addresses = \"0.0.0.0\"\n", "node.public_addresses"),
      "portway.toml:1: node.public_addresses: must be a list of strings like [\"0.0.0.0\"], not a string");
  EXPECT_EQ(refusal("node.public_addresses = [1]\n", "node.public_addresses"),
            "portway.toml:1: node.public_addresses: must be a list of strings like [\"0.0.0.0\"], not a list "
            "of integers");
  EXPECT_EQ(refusal("proxy = 3\n", "proxy"),
            "portway.toml:1: proxy: is a table; write [proxy] and its keys below");
  for (const char* text : {"proxy.workers = 1.5", "proxy.workers = true", "proxy.workers = 2026-01-01",
                           "[[proxy]]", "[proxy.workers]", "profiles.default = 5", "[[profiles.default]]"}) {
    EXPECT_FALSE(parse_config(text, "portway.toml")) << text;
  }
}

TEST(Config, ValuesOutsideTheirRangeAreRefused) {
  EXPECT_EQ(refusal("[proxy]\nworkers = 65\n", "proxy.workers"),
            "portway.toml:2: proxy.workers: 65 is out of range; it must be 0 to 64");
  for (const char* text : {
           "proxy.workers = -1",
           "proxy.connections_max = 0",
           "proxy.source_rule_preference = 32766",
           "proxy.source_rule_preference = -1",
           "proxy.source_route_table = 0",
           "proxy.source_route_table = 253",
           "proxy.source_route_table = 255",
           "proxy.source_route_table = 4294967296",
           "proxy.source_mark_bit = 32",
           "proxy.source_mark_bit = -1",
           "proxy.connect_timeout_ms = 0",
           "proxy.keepalive_s = 32768",
           "proxy.pipes_max = 0",
           "proxy.idle_timeout_s = 9223372036854775807",
           "api.body_max_bytes = 1023",
           "profiles.default.max_forwarded_ports = 65536",
           "profiles.default.max_bytes_per_second = 1000000000001",
           "profiles.default.max_connections = -1",
           "proxy.io_backend = \"kqueue\"",
           "ports.range = \"1000-2000\"",
           "ports.range = \"30000-20000\"",
           "ports.range = \"\"",
           "node.public_addresses = []",
           "node.public_addresses = [\"224.0.0.1\"]",
           "node.public_addresses = [\"eth0\"]",
           "node.public_addresses = [\"203.0.113.7\", \"203.0.113.7\"]",
           "node.public_hostname = \"a b\"",
           "node.public_hostname = \"http://a\"",
           "api.listen = \"localhost:8080\"",
           "api.listen = \"\"",
           "api.admin_key_file = \"\"",
           "store.path = \"\"",
           "store.path = \"a\\u0000b\"",
           "guests.networks = [\"198.18.0.1/15\"]",
           "guests.networks = [\"\"]",
           "guests.netns_directories = [\"\"]",
           "guests.netns_directories = [\"run/netns\"]",
           "guests.netns_directories = [\"/run/netns/..\"]",
           "guests.netns_directories = [\"/run/../netns\"]",
           "guests.netns_directories = [\"/run\\u0000\"]",
           "guests.netns_directories = [\"/run/netns\", \"/run/netns\"]",
           "guests.netns_directories = \"/run/netns\"",
           "guests.socket_directories = [\"run/fc\"]",
           "guests.socket_directories = [\"/run/../fc\"]",
           "api.listen = \"unix:run/api.sock\"",
           "api.listen = \"unix:/run/\"",
           "api.admin_uids = [-1]",
           "api.admin_uids = [65534]",
           "api.admin_uids = [4294967295]",
           "api.admin_uids = [\"root\"]",
           "api.admin_uids = 0",
           "api.allow_guests = 1",
           "api.allow_guests = \"true\"",
       }) {
    EXPECT_FALSE(parse_config(text, "portway.toml")) << text;
  }
}

TEST(Config, NumbersThatTheKernelHasTakenAreRefused) {
  EXPECT_EQ(refusal("proxy.source_rule_preference = 1\n", "proxy.source_rule_preference"),
            "portway.toml:1: proxy.source_rule_preference: 1 leaves no preference for the rule before it, "
            "which is taken too; it must be 0, or 2 or more");
  EXPECT_EQ(
      refusal("proxy.source_route_table = 254\n", "proxy.source_route_table"),
      "portway.toml:1: proxy.source_route_table: 254 is a routing table of the system's (default, main, "
      "local); give another one");
  parsed("proxy.source_rule_preference = 2\nproxy.source_route_table = 252\nproxy.source_mark_bit = 31\n");
}

TEST(Config, WhatThisVersionCannotDoIsRefusedAndNotIgnored) {
  EXPECT_EQ(refusal("api.listen = \"unix:@portway\"\n", "api.listen"),
            "portway.toml:1: api.listen: \"unix:@portway\" is an abstract socket, which is not supported: it "
            "has no permissions; use a path, e.g. unix:/run/portway/api.sock");
  EXPECT_EQ(refusal("proxy.source_mode = \"snat\"\n", "proxy.source_mode"),
            "portway.toml:1: proxy.source_mode: \"snat\" is none of \"auto\", \"transparent\", \"plain\", "
            "\"proxy_v2\"");
}

TEST(Config, KeysThatContradictEachOtherAreRefused) {
  EXPECT_EQ(refusal("metrics.listen = \"127.0.0.1:8080\"\n", "metrics.listen"),
            "portway.toml:1: metrics.listen: 127.0.0.1:8080 is where the API listens; give it another port, "
            "or leave it empty "
            "to have /metrics on the API's listener");
  EXPECT_TRUE(refusal("node.public_addresses = [\"203.0.113.7\", \"0.0.0.0\"]\n", "node.public_addresses")
                  .starts_with("portway.toml:1: node.public_addresses: 0.0.0.0 covers the other addresses"));
  parsed("node.public_addresses = [\"203.0.113.7\", \"::\"]\n");
  parsed("api.listen = \"127.0.0.1:0\"\nmetrics.listen = \"127.0.0.1:0\"\n");
  EXPECT_TRUE(
      refusal("[api]\nlisten = \"unix:/run/a\"\n[metrics]\nlisten = \"unix:/run/a\"\n", "metrics.listen")
          .starts_with("portway.toml:4: metrics.listen: unix:/run/a is where the API listens"));
  parsed("[api]\nlisten = \"unix:/run/a\"\n[metrics]\nlisten = \"unix:/run/b\"\n");
}

TEST(Config, TlsIsACertificateAndItsKeyOnATcpListener) {
  EXPECT_EQ(refusal("api.tls_certificate = \"a\"\n", "api.tls_certificate"),
            "portway.toml:1: api.tls_certificate: needs its private key; set api.tls_private_key too");
  EXPECT_EQ(refusal("api.tls_private_key = \"a\"\n", "api.tls_private_key"),
            "portway.toml:1: api.tls_private_key: needs its certificate; set api.tls_certificate too");
  EXPECT_TRUE(refusal("api.client_ca = \"a\"\n", "api.client_ca")
                  .starts_with("portway.toml:1: api.client_ca: needs TLS"));
  const std::string tls = "[api]\ntls_certificate = \"a\"\ntls_private_key = \"b\"\n";
  EXPECT_TRUE(refusal(tls + "listen = \"unix:/run/a\"\n", "api.tls_certificate")
                  .starts_with("portway.toml:2: api.tls_certificate: api.listen is a Unix socket"));
  EXPECT_EQ(parsed(tls + "client_ca = \"c\"\n").api.client_ca, "c");
}

std::vector<std::string> addresses_of(const Config& config) {
  std::vector<std::string> addresses;
  for (const ApiListener& listener : config.api.listen) addresses.push_back(to_string(listener.address));
  return addresses;
}

TEST(ConfigListeners, AreOneAddressOrAListOfAddressesAndTables) {
  const std::vector<std::string> both = {"127.0.0.1:1", "unix:/run/a"};
  EXPECT_EQ(addresses_of(parsed("api.listen = [\"127.0.0.1:1\", \"unix:/run/a\"]\n")), both);
  EXPECT_EQ(addresses_of(parsed("api.listen = [\"127.0.0.1:1\", { address = \"unix:/run/a\" }]\n")), both);
  EXPECT_EQ(addresses_of(parsed("[[api.listen]]\naddress = \"127.0.0.1:1\"\n"
                                "[[api.listen]]\naddress = \"unix:/run/a\"\n")),
            both);
  const std::array set = {Override{"api.listen", "127.0.0.1:1, unix:/run/a", "--set"}};
  EXPECT_EQ(addresses_of(parsed("api.listen = \"127.0.0.1:7\"\n", set)), both);
  const std::array one = {Override{"api.listen", "127.0.0.1:1", "--set"}};
  EXPECT_EQ(addresses_of(parsed("[[api.listen]]\naddress = \"[::1]:2\"\n", one)),
            std::vector<std::string>{"127.0.0.1:1"});
}

TEST(ConfigListeners, HaveWhatTheyLeaveOutFromTheirTable) {
  const Config config = parsed(
      "[api]\ntls_certificate = \"a\"\ntls_private_key = \"b\"\nclient_ca = \"c\"\nadmin_uids = [1]\n"
      "[[api.listen]]\naddress = \"unix:/run/a\"\nadmin_uids = [0]\n"
      "[[api.listen]]\naddress = \"[::]:8443\"\nallow_guests = true\n"
      "[[api.listen]]\naddress = \"[::1]:9443\"\ntls_certificate = \"d\"\ntls_private_key = \"e\"\nclient_ca "
      "= \"\"\n"
      "[[api.listen]]\naddress = \"127.0.0.1:8080\"\ntls_certificate = \"\"\n"
      "[[api.listen]]\naddress = \"unix:/run/b\"\n");
  const Config::Api& api = config.api;
  EXPECT_EQ(tls_of_listener(api, 0), TlsFiles{});
  EXPECT_EQ(tls_of_listener(api, 1), (TlsFiles{.certificate = "a", .private_key = "b", .client_ca = "c"}));
  EXPECT_EQ(
      tls_of_listener(api, 2),
      (TlsFiles{.certificate = "d", .private_key = "e", .client_ca = "", .key_prefix = "api.listen[2]."}));
  EXPECT_EQ(tls_of_listener(api, 3), TlsFiles{});
  EXPECT_EQ(admin_uids_of(api, 0), std::vector<std::uint32_t>{0});
  EXPECT_EQ(admin_uids_of(api, 4), std::vector<std::uint32_t>{1});
  EXPECT_TRUE(allows_guests(api, 1));
  EXPECT_FALSE(allows_guests(api, 0));
}

TEST(ConfigListeners, AreRefusedWithTheEntryAndTheRemedy) {
  const std::string two = "[[api.listen]]\naddress = \"127.0.0.1:1\"\n[[api.listen]]\n";
  EXPECT_EQ(
      refusal(two + "address = \"127.0.0.1:1\"\n", "api.listen[1].address"),
      "portway.toml:4: api.listen[1].address: 127.0.0.1:1 is taken by api.listen[0], 127.0.0.1:1; choose "
      "another, or leave one out");
  EXPECT_EQ(refusal(two + "adress = \"127.0.0.1:2\"\n", "api.listen[1].adress"),
            "portway.toml:4: api.listen[1].adress: is no key of a listener; did you mean address?");
  EXPECT_EQ(
      refusal(two + "workers = 1\n", "api.listen[1].workers"),
      "portway.toml:4: api.listen[1].workers: is no key of a listener; these are: address, tls_certificate, "
      "tls_private_key, client_ca, allow_guests, admin_uids");
  EXPECT_EQ(refusal(two + "allow_guests = true\n", "api.listen[1].address"),
            "portway.toml:3: api.listen[1].address: is missing; say where this listener is, e.g. address = "
            "\"127.0.0.1:8080\"");
  EXPECT_EQ(refusal(two + "address = 2\n", "api.listen[1].address"),
            "portway.toml:4: api.listen[1].address: must be a string, not an integer");
  EXPECT_EQ(
      refusal(two + "address = \"127.0.0.1:2\"\nadmin_uids = [0]\n", "api.listen[1].admin_uids"),
      "portway.toml:5: api.listen[1].admin_uids: who is calling is known on a Unix socket only; leave it "
      "out");
  EXPECT_EQ(refusal(two + "address = \"[::]:2\"\ntls_certificate = \"a\"\n", "api.listen[1].tls_certificate"),
            "portway.toml:5: api.listen[1].tls_certificate: needs its private key; set "
            "api.listen[1].tls_private_key too");
  EXPECT_EQ(
      refusal("api.listen = [\"127.0.0.1:1\", 2]\n", "api.listen[1]"),
      "portway.toml:1: api.listen[1]: must be a string like \"127.0.0.1:8080\", or a table with an address, "
      "not an integer");
  EXPECT_EQ(refusal("api.listen = []\n", "api.listen"),
            "portway.toml:1: api.listen: 0 listeners; there must be 1 to 16");
  const std::string alone = "[[api.listen]]\naddress = \"unix:/run/a\"\n";
  EXPECT_EQ(refusal(alone + "client_ca = \"a\"\n", "api.listen[0].client_ca"),
            "portway.toml:3: api.listen[0].client_ca: a Unix socket never leaves this machine; leave it out");
  const std::array set = {Override{"api.listen", "127.0.0.1:1, localhost:2", "--set"}};
  const auto overridden = parse_config("", "portway.toml", set);
  ASSERT_FALSE(overridden);
  EXPECT_EQ(overridden.error().field, "api.listen[1]");
  EXPECT_TRUE(overridden.error().detail.starts_with("--set: api.listen[1]: \"localhost:2\""));
}

TEST(ConfigListeners, DoNotShareAPort) {
  const auto listen = [](std::string_view one, std::string_view other) {
    return parse_config(fmt::format("api.listen = [\"{}\", \"{}\"]\n", one, other), "portway.toml");
  };
  for (const auto& [one, other] : {std::pair("127.0.0.1:1", "0.0.0.0:1"),
                                   {"[::]:1", "127.0.0.1:1"},
                                   {"[::1]:1", "[::]:1"},
                                   {"[::]:1", "0.0.0.0:1"},
                                   {"unix:/a", "unix:/a"}}) {
    EXPECT_FALSE(listen(one, other)) << one << " " << other;
  }
  for (const auto& [one, other] : {std::pair("127.0.0.1:1", "127.0.0.1:2"),
                                   {"0.0.0.0:1", "[::1]:1"},
                                   {"127.0.0.1:0", "127.0.0.1:0"},
                                   {"unix:/a", "unix:/b"}}) {
    EXPECT_TRUE(listen(one, other)) << one << " " << other;
  }
  EXPECT_TRUE(
      refusal("api.listen = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\nmetrics.listen = \"127.0.0.1:2\"\n",
              "metrics.listen")
          .ends_with("127.0.0.1:2 is where the API listens; give it another port, or leave it empty to "
                     "have /metrics on the API's listener"));
}

TEST(ConfigListeners, AChangeOfOneNeedsARestart) {
  Config running = parsed("[[api.listen]]\naddress = \"[::]:1\"\n");
  EXPECT_EQ(take_live_keys(running, parsed("api.listen = [\"[::]:1\"]\n")), std::vector<std::string>{});
  EXPECT_EQ(take_live_keys(running, parsed("[[api.listen]]\naddress = \"[::]:1\"\nallow_guests = true\n")),
            std::vector<std::string>{"api.listen"});
  EXPECT_FALSE(allows_guests(running.api, 0));
}

TEST(Config, ListsOfNumbersAndYesOrNoComeFromFilesAndFromText) {
  const Config config = parsed("api.admin_uids = [0, 1000]\napi.allow_guests = true\n");
  EXPECT_EQ(config.api.admin_uids, (std::vector<std::uint32_t>{0, 1000}));
  EXPECT_TRUE(config.api.allow_guests);
  const auto overrides =
      std::to_array<Override>({{"api.admin_uids", "7, 8", "--set"}, {"api.allow_guests", "true", "--set"}});
  const Config overridden = parsed("api.admin_uids = [0, 1000]\n", overrides);
  EXPECT_EQ(overridden.api.admin_uids, (std::vector<std::uint32_t>{7, 8}));
  EXPECT_TRUE(overridden.api.allow_guests);
  const std::array none = {Override{"api.admin_uids", "", "--set"}};
  EXPECT_TRUE(parsed("api.admin_uids = [0]\n", none).api.admin_uids.empty());
  for (const auto& [key, value] : {std::pair("api.admin_uids", "root"), {"api.allow_guests", "yes"}}) {
    const std::array bad = {Override{key, value, "--set"}};
    EXPECT_FALSE(parse_config("", "", bad)) << value;
  }
}

TEST(ListenAddress, IsParsedAsItIsPrinted) {
  for (const char* text : {"127.0.0.1:8080", "[::1]:0", "unix:/run/portway/api.sock"}) {
    const auto address = parse_listen_address(text);
    ASSERT_TRUE(address) << text;
    EXPECT_EQ(to_string(*address), text);
  }
  EXPECT_TRUE(parse_listen_address("unix:/" + std::string(106, 'a')));
  for (const std::string& text :
       {std::string("unix:"), std::string("unix:a"), "unix:/" + std::string(107, 'a'),
        std::string("unix:/a\0b", 9), std::string("unix://"), std::string("/run/a")}) {
    EXPECT_FALSE(parse_listen_address(text)) << text;
  }
}

TEST(ConfigOfTheFleet, ANodesIdAndAddressAreThoseOfItsNameUnlessTheyAreSet) {
  const std::string name = "node.public_hostname = \"n1.example\"\n";
  const Config loopback = parsed(name);
  EXPECT_EQ(fleet_node_id(loopback), "n1.example");
  EXPECT_EQ(fleet_address(loopback), "");
  EXPECT_EQ(
      fleet_address(parsed(name + "api.listen = [\"127.0.0.1:1\", \"unix:/run/a\", \"0.0.0.0:8080\"]\n")),
      "http://n1.example:8080");
  EXPECT_EQ(fleet_address(parsed(name + "[api]\nlisten = \"10.0.0.1:8443\"\ntls_certificate = \"a\"\n"
                                        "tls_private_key = \"a\"\n")),
            "https://n1.example:8443");
  const Config set = parsed(name + "[fleet]\nnode_id = \"n-1\"\naddress = \"https://10.0.0.1:8443\"\n");
  EXPECT_EQ(fleet_node_id(set), "n-1");
  EXPECT_EQ(fleet_address(set), "https://10.0.0.1:8443");
}

TEST(ConfigOfTheFleet, WhatCannotWorkIsRefusedWithItsKey) {
  const auto refused = [](const std::string& line, const std::string& key, const std::string& part) {
    EXPECT_THAT(refusal("fleet.etcd = [\"https://e:2379\"]\n" + line, key), testing::HasSubstr(part)) << line;
  };
  refused("fleet.node_id = \"a/b\"\n", "fleet.node_id", "is no id");
  refused("fleet.node_id = \"" + std::string(65, 'a') + "\"\n", "fleet.node_id", "is no id");
  refused("node.public_hostname = \"" + std::string(65, 'a') + "\"\n", "fleet.node_id", "give a shorter id");
  refused("fleet.prefix = \"/portway\"\n", "fleet.prefix", "is no prefix");
  refused("fleet.prefix = \"/\"\n", "fleet.prefix", "is no prefix");
  refused("fleet.address = \"https://h/x\"\n", "fleet.address", "and nothing else");
  refused("fleet.address = \"h:1\"\n", "fleet.address", "is no URL");
  refused("fleet.lease_ttl_s = 4\n", "fleet.lease_ttl_s", "5 to 60");
  refused("fleet.etcd_user = \"joe\"\n", "fleet.etcd_user", "fleet.etcd_password_file");
  refused("fleet.etcd_password_file = \"/p\"\n", "fleet.etcd_password_file", "fleet.etcd_user");
  refused("fleet.etcd_tls_certificate = \"/p\"\n", "fleet.etcd_tls_certificate",
          "fleet.etcd_tls_private_key");
  refused("fleet.etcd_tls_private_key = \"/p\"\n", "fleet.etcd_tls_private_key",
          "fleet.etcd_tls_certificate");
  EXPECT_THAT(refusal("fleet.etcd = [\"e:2379\"]\n", "fleet.etcd"), testing::HasSubstr("is no URL"));
}

TEST(ConfigOfTheFleet, GatewaysAreDnsNamesInLowerCase) {
  EXPECT_EQ(parsed("fleet.gateways = [\"Gateway.Example.com\", \"gw_2\"]\n").fleet.gateways,
            (std::vector<std::string>{"gateway.example.com", "gw_2"}));
  for (const std::string name :
       {"", ".", "a.", ".a", "a..b", "-a", "a-.b", "*.example.com", "a b", "10.0.0.7", "a/b"}) {
    EXPECT_THAT(refusal("fleet.gateways = [\"" + name + "\"]\n", "fleet.gateways"),
                testing::HasSubstr("is no DNS name"))
        << name;
  }
  EXPECT_THAT(refusal("fleet.gateways = [\"" + std::string(64, 'a') + "\"]\n", "fleet.gateways"),
              testing::HasSubstr("is no DNS name"));
  EXPECT_THAT(refusal("fleet.gateways = [\"a.b\", \"A.b\"]\n", "fleet.gateways"),
              testing::HasSubstr("is there twice"));
  std::string many = "\"g0\"";
  for (int i = 1; i < 17; ++i) many += ", \"g" + std::to_string(i) + "\"";
  EXPECT_THAT(refusal("fleet.gateways = [" + many + "]\n", "fleet.gateways"),
              testing::HasSubstr("there must be 0 to 16"));
}

TEST(ConfigWarnings, AreAboutGatewaysThatCannotBeKnown) {
  const std::string guests = "guests.networks = [\"198.18.0.0/15\"]\nfleet.gateways = [\"g\"]\n";
  const auto warnings = config_warnings(parsed(guests));
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_TRUE(warnings[0].starts_with("fleet.gateways has no effect"));
  const std::string tls = "tls_certificate = \"a\"\ntls_private_key = \"a\"\nclient_ca = \"a\"\n";
  EXPECT_TRUE(config_warnings(parsed(guests + "[api]\n" + tls)).empty());
  EXPECT_TRUE(config_warnings(parsed(guests + "[[api.listen]]\naddress = \"unix:/run/a\"\n" +
                                     "[[api.listen]]\naddress = \"127.0.0.1:1\"\n" + tls))
                  .empty());
}

TEST(ConfigWarnings, AreAboutAFleetThatIsNotReachedOrNotSecret) {
  const std::string guests = "guests.networks = [\"198.18.0.0/15\"]\n";
  EXPECT_TRUE(
      config_warnings(parsed(guests + "[fleet]\naddress = \"https://h\"\netcd = [\"https://e\"]\n")).empty());
  const auto warnings = config_warnings(parsed(guests + "fleet.etcd = [\"http://e\"]\n"));
  ASSERT_EQ(warnings.size(), 2U);
  EXPECT_TRUE(warnings[0].starts_with("fleet.address is empty"));
  EXPECT_TRUE(warnings[1].starts_with("fleet.etcd has http://"));
}

TEST(ConfigWarnings, AreLessWithTlsAndAboutAdminUidsOverTcp) {
  const std::string guests = "guests.networks = [\"198.18.0.0/15\"]\n";
  EXPECT_TRUE(
      config_warnings(parsed(guests + "api.listen = \"unix:/run/a\"\napi.admin_uids = [0]\n")).empty());
  EXPECT_TRUE(config_warnings(parsed(guests + "api.listen = \"0.0.0.0:1\"\napi.tls_certificate = \"a\"\n"
                                              "api.tls_private_key = \"a\"\n"))
                  .empty());
  const auto warnings = config_warnings(parsed(guests + "api.admin_uids = [0]\n"));
  ASSERT_EQ(warnings.size(), 1U);
  EXPECT_TRUE(warnings[0].starts_with("api.admin_uids has no effect"));
}

TEST(Config, WhatIsNotTomlIsRefusedWithItsPlace) {
  EXPECT_TRUE(refusal("[api]\nlisten = 127.0.0.1:8080\n", "").starts_with("portway.toml:2: not TOML: "));
  for (const std::string_view text :
       {std::string_view("["), std::string_view("[api]\n[api]\n"), std::string_view("a = \"\xff\""),
        std::string_view("a = 'x'\na = 'y'"), std::string_view("\0\0\0", 3)}) {
    EXPECT_FALSE(parse_config(text, "portway.toml"));
  }
}

TEST(Config, AQuotedKeyIsNoPath) {
  EXPECT_FALSE(parse_config("\"api.listen\" = \"127.0.0.1:1\"\n", "portway.toml"));
  EXPECT_FALSE(parse_config("[profiles]\n\"a.b\" = { max_forwarded_ports = 3 }\n", "portway.toml"));
  EXPECT_FALSE(parse_config("[profiles.\"\"]\n", "portway.toml"));
}

TEST(ConfigOverrides, TheEnvironmentBeatsTheFileAndAFlagBeatsTheEnvironment) {
  const char* const environment[] = {"HOME=/root",
                                     "PORTWAY_API_LISTEN=127.0.0.1:2",
                                     "PORTWAY_PROXY_WORKERS=3",
                                     "PORTWAY_GUESTS_NETWORKS=198.18.0.0/15, fd00::/8",
                                     "PORTWAY_PROFILES_DEFAULT_MAX_FORWARDED_PORTS=9",
                                     nullptr};
  auto overrides = environment_overrides(environment);
  overrides.push_back(*parse_override("api.listen=127.0.0.1:3"));
  overrides.push_back(*parse_override("profiles.small.max_forwarded_ports=2"));
  const Config config =
      parsed("[api]\nlisten = \"127.0.0.1:1\"\nbody_max_bytes = 2048\n[proxy]\nworkers = 1\n", overrides);
  EXPECT_EQ(to_string(config.api.listen.at(0).address), "127.0.0.1:3");
  EXPECT_EQ(config.api.body_max_bytes, 2048U);
  EXPECT_EQ(config.proxy.workers, 3U);
  ASSERT_EQ(config.guests.networks.size(), 2U);
  EXPECT_EQ(config.guests.networks[1].to_string(), "fd00::/8");
  EXPECT_EQ(config.profiles.at("default").max_forwarded_ports, 9U);
  EXPECT_EQ(config.profiles.at("small").max_forwarded_ports, 2U);
}

TEST(ConfigOverrides, AnEmptyValueIsAnEmptyStringOrList) {
  const char* const environment[] = {"PORTWAY_METRICS_LISTEN=", "PORTWAY_GUESTS_NETWORKS=", nullptr};
  const Config config = parsed("metrics.listen = \"127.0.0.1:1\"\nguests.networks = [\"fd00::/8\"]\n",
                               environment_overrides(environment));
  EXPECT_FALSE(config.metrics.listen);
  EXPECT_TRUE(config.guests.networks.empty());
}

TEST(ConfigOverrides, EveryKeyHasAVariableOfItsOwn) {
  std::set<std::string> names;
  for (const ConfigKey& key : config_keys()) {
    EXPECT_TRUE(names.insert(environment_name(key)).second);
    const std::string entry = environment_name(key) + "=x";
    const char* const environment[] = {entry.c_str(), nullptr};
    const auto overrides = environment_overrides(environment);
    ASSERT_EQ(overrides.size(), 1U) << entry;
    EXPECT_EQ(find_config_key(overrides[0].key), &key) << overrides[0].key;
  }
}

TEST(ConfigOverrides, ErrorsNameWhereTheValueCameFrom) {
  const char* const environment[] = {"PORTWAY_PROXY_WORKERS=many", nullptr};
  EXPECT_EQ(
      refusal("", "proxy.workers", environment_overrides(environment)),
      "environment variable PORTWAY_PROXY_WORKERS: proxy.workers: must be an integer like 0, not \"many\"");
  const Override flag = *parse_override("proxy.worker=1");
  EXPECT_EQ(refusal("", "proxy.worker", {&flag, 1}),
            "--set: unknown key \"proxy.worker\"; did you mean proxy.workers?");
}

TEST(ConfigOverrides, AVariableThatIsNearlyRightIsRefusedAndOthersAreNotOurs) {
  const char* const near[] = {"PORTWAY_API_LISTEM=127.0.0.1:1", nullptr};
  EXPECT_EQ(refusal("", "api_listem", environment_overrides(near)),
            "environment variable PORTWAY_API_LISTEM: unknown key \"api_listem\"; did you mean api.listen?");
  const char* const others[] = {"PORTWAY_SERVICE_HOST=10.0.0.1",
                                "PORTWAY_PORT=tcp://10.0.0.1:80",
                                "PORTWAY_API_KEY=x",
                                "PORTWAY_PORT_8080_TCP_ADDR=10.0.0.1",
                                "PORTWAY_=",
                                "PORTWAY_API_LISTEN",
                                nullptr};
  EXPECT_TRUE(environment_overrides(others).empty());
}

TEST(ConfigOverrides, AnAssignmentHasAKeyAndAValue) {
  const auto over = parse_override("node.public_hostname=a=b");
  ASSERT_TRUE(over);
  EXPECT_EQ(over->key, "node.public_hostname");
  EXPECT_EQ(over->value, "a=b");
  EXPECT_FALSE(parse_override("api.listen"));
  EXPECT_FALSE(parse_override("=x"));
  for (const char* text :
       {"profiles.a b.max_forwarded_ports=1", "profiles.*.max_forwarded_ports=1", "profiles=1",
        "proxy.workers=", "proxy.workers= 1", "proxy.workers=1x", "guests.networks=fd00::/8,"}) {
    const Override odd = *parse_override(text);
    EXPECT_FALSE(parse_config("", "portway.toml", {&odd, 1})) << text;
  }
}

class ConfigFile : public testing::Test {
 protected:
  void SetUp() override {
    std::string name = testing::TempDir() + "portway-config-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    directory_ = name;
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }

  std::string write(const std::string& text) const {
    const std::string path = directory_ / "portway.toml";
    std::ofstream(path) << text;
    return path;
  }

  std::filesystem::path directory_;
};

TEST_F(ConfigFile, IsReadAndNamedInErrors) {
  EXPECT_EQ(load_config(write("[proxy]\nworkers = 4\n"))->proxy.workers, 4U);
  const std::string path = write("[proxy]\nworkers = 400\n");
  EXPECT_TRUE(load_config(path).error().detail.starts_with(path + ":2: proxy.workers: "));
}

TEST_F(ConfigFile, ThatCannotBeReadIsRefusedWithTheReason) {
  const std::string missing = directory_ / "missing.toml";
  EXPECT_EQ(load_config(missing).error().detail,
            missing + ": cannot be read: No such file or directory; name a readable file with --config");
  EXPECT_EQ(load_config(directory_).error().detail,
            directory_.string() + ": cannot be read: Is a directory; name a readable file with --config");
}

TEST_F(ConfigFile, ThatIsHugeIsRefused) {
  const auto config = load_config(write(std::string((1 << 20) + 1, '\n')));
  ASSERT_FALSE(config);
  EXPECT_NE(config.error().detail.find("larger than 1 MiB"), std::string::npos);
  EXPECT_TRUE(load_config(write(std::string(1 << 20, '\n'))));
}

TEST(ConfigWarnings, AreAboutWhatIsProbablyNotMeant) {
  EXPECT_TRUE(config_warnings(parsed("guests.networks = [\"198.18.0.0/15\"]")).empty());
  const auto warnings =
      config_warnings(parsed("api.listen = \"0.0.0.0:20001\"\nmetrics.listen = \"127.0.0.1:20002\"\n"));
  ASSERT_EQ(warnings.size(), 4U);
  EXPECT_TRUE(warnings[0].starts_with("guests.networks is empty"));
  EXPECT_TRUE(warnings[1].starts_with("api.listen 0.0.0.0:20001 is not on loopback"));
  EXPECT_TRUE(warnings[2].starts_with("api.listen 0.0.0.0:20001 lies in ports.range"));
  EXPECT_TRUE(warnings[3].starts_with("metrics.listen 127.0.0.1:20002 lies in ports.range"));
}

TEST(EditDistance, CountsInsertionsDeletionsAndReplacements) {
  EXPECT_EQ(edit_distance("", ""), 0U);
  EXPECT_EQ(edit_distance("listen", "listen"), 0U);
  EXPECT_EQ(edit_distance("listen", "lissten"), 1U);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3U);
  EXPECT_EQ(edit_distance("", "abc"), 3U);
  EXPECT_EQ(edit_distance(std::string(100'000, 'a'), "a"), 100'000U);
}

}  // namespace
}  // namespace portway
