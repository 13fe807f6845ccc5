// The metrics of the control plane, of the API and of the process.
#pragma once

#include "metrics/sink.h"
#include "metrics/sources.h"

namespace portway {

void emit_control(Sink& sink, const ExporterSources& sources);

}  // namespace portway
