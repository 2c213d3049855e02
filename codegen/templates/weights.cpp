// GEN(note)
// GEN(blob.name).bin: GEN(blob | layout)

#include "kaoken/embed.h"

KAOKEN_EMBED(kaoken_GEN(name)_GEN(blob.name), "GEN(blob.name).bin")
