#include "api/http/gzip.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <random>

namespace portway {
namespace {

std::string unzipped(const std::string& zipped, std::size_t size) {
  std::string out(size + 1, '\0');
  z_stream stream{};
  EXPECT_EQ(::inflateInit2(&stream, 15 + 16), Z_OK);
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(zipped.data()));
  stream.avail_in = static_cast<uInt>(zipped.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(::inflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(stream.total_out);
  ::inflateEnd(&stream);
  return out;
}

TEST(Gzip, OfPiecesReadsBackAsWhatTheyWere) {
  std::mt19937 random(1);
  std::string noise(1'000'000, '\0');  // does not shrink: the output has to grow
  for (char& c : noise) c = static_cast<char>(random());
  for (const std::string& text : {std::string(), std::string("x"), std::string(5'000'000, 'y'), noise}) {
    const auto zip = Gzip::start();
    std::string zipped;
    for (std::size_t at = 0; at < text.size(); at += 10'000) {
      zipped += zip->add(std::string_view(text).substr(at, 10'000));
    }
    zipped += zip->add("");
    EXPECT_TRUE(unzipped(zipped, text.size()) == text) << text.size();
  }
}

TEST(Gzip, IsGivenToThoseWhoAcceptIt) {
  for (const char* yes :
       {"gzip", "GZIP", "deflate, gzip", "gzip;q=0.5", "br;q=1.0, gzip ; q=0.001", "*", "x-gzip"}) {
    EXPECT_TRUE(accepts_gzip(yes)) << yes;
  }
  for (const char* no :
       {"", "identity", "gzip;q=0", "gzip; q=0.000", "*;q=0", "gzip;q=0, *", "gzipped", "br, deflate"}) {
    EXPECT_FALSE(accepts_gzip(no)) << no;
  }
}

}  // namespace
}  // namespace portway
