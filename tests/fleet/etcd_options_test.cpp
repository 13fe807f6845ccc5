#include "fleet/etcd_options.h"

#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <string>

namespace portway {
namespace {

using std::chrono::milliseconds;

TEST(EtcdOptions, TakeUrlsApart) {
  EtcdOptions options;
  options.endpoints = {"http://198.18.0.1:2380", "http://etcd-1.example/", "http://[fd00::1]:7"};
  const auto endpoints = check_etcd_options(options);
  ASSERT_TRUE(endpoints) << endpoints.error().detail;
  EXPECT_EQ(endpoints->at(0).host, "198.18.0.1");
  EXPECT_EQ(endpoints->at(0).port, "2380");
  EXPECT_EQ(endpoints->at(0).authority, "198.18.0.1:2380");
  EXPECT_EQ(endpoints->at(1).port, "2379");
  EXPECT_EQ(endpoints->at(1).url, "http://etcd-1.example:2379");
  EXPECT_EQ(endpoints->at(2).host, "fd00::1");
  EXPECT_EQ(endpoints->at(2).authority, "[fd00::1]:7");
  EXPECT_FALSE(endpoints->at(2).tls);
}

TEST(EtcdOptions, NameTheFieldAndTheRemedy) {
  struct Case {
    std::string field;
    std::string part;  // of the detail
    std::function<void(EtcdOptions&)> spoil;
  };
  const Case cases[] = {
      {"endpoints", "1-16", [](EtcdOptions& o) { o.endpoints = {}; }},
      {"endpoints", "1-16", [](EtcdOptions& o) { o.endpoints.assign(17, "http://a"); }},
      {"endpoints", "like https://", [](EtcdOptions& o) { o.endpoints = {"etcd-1 example"}; }},
      {"endpoints", "http:// or https://", [](EtcdOptions& o) { o.endpoints = {"ftp://a"}; }},
      {"endpoints", "nothing else", [](EtcdOptions& o) { o.endpoints = {"http://a/v3"}; }},
      {"endpoints", "nothing else", [](EtcdOptions& o) { o.endpoints = {"http://a?x=y"}; }},
      {"endpoints", "nothing else", [](EtcdOptions& o) { o.endpoints = {"http://"}; }},
      {"endpoints", "1-65535", [](EtcdOptions& o) { o.endpoints = {"http://a:65536"}; }},
      {"endpoints", "fleet.etcd_user", [](EtcdOptions& o) { o.endpoints = {"http://joe:secret@a"}; }},
      {"tls_private_key", "go together", [](EtcdOptions& o) { o.tls_certificate = "/c"; }},
      {"tls_certificate", "go together", [](EtcdOptions& o) { o.tls_private_key = "/k"; }},
      {"tls_ca", "https://", [](EtcdOptions& o) { o.tls_ca = "/ca"; }},
      {"user", "needs one", [](EtcdOptions& o) { o.password = "secret"; }},
      {"password", "needs one", [](EtcdOptions& o) { o.user = "joe"; }},
      {"password", "1024",
       [](EtcdOptions& o) {
         o.user = "joe";
         o.password = std::string(1025, 's');
       }},
      {"connect_timeout", "10-60000 ms", [](EtcdOptions& o) { o.connect_timeout = milliseconds(9); }},
      {"request_timeout", "10-600000 ms", [](EtcdOptions& o) { o.request_timeout = milliseconds(600'001); }},
      {"silence_max", "10-600000 ms", [](EtcdOptions& o) { o.silence_max = milliseconds(-1); }},
      {"answer_max", "65536-", [](EtcdOptions& o) { o.answer_max = 1000; }},
  };
  for (const Case& one : cases) {
    EtcdOptions options;
    options.key_prefix = "fleet.etcd_";
    options.endpoints_key = "fleet.etcd";
    options.endpoints = {"http://198.18.0.1:2379"};
    ASSERT_TRUE(check_etcd_options(options));
    one.spoil(options);
    const auto checked = check_etcd_options(options);
    ASSERT_FALSE(checked) << one.field << ": " << one.part;
    EXPECT_EQ(checked.error().code, ErrorCode::kInvalidConfig);
    const std::string key = one.field == "endpoints" ? "fleet.etcd" : "fleet.etcd_" + one.field;
    EXPECT_EQ(checked.error().field, key);
    EXPECT_EQ(checked.error().detail.find(key + ": "), 0U) << checked.error().detail;
    EXPECT_NE(checked.error().detail.find(one.part), std::string::npos) << checked.error().detail;
    EXPECT_EQ(checked.error().detail.find("secret"), std::string::npos) << checked.error().detail;
  }
}

}  // namespace
}  // namespace portway
