package dev.kvmerge.chat;

import com.hubspot.jinjava.interpret.JinjavaInterpreter;
import com.hubspot.jinjava.lib.exptest.ExpTest;
import com.hubspot.jinjava.lib.filter.Filter;
import com.hubspot.jinjava.util.ForLoop;
import dev.kvmerge.KvmergeException;
import java.beans.FeatureDescriptor;
import java.lang.reflect.Array;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collection;
import java.util.Iterator;
import java.util.List;
import java.util.Map;
import jinjava.javax.el.ELContext;
import jinjava.javax.el.ELResolver;

/**
 * What a template can do with a value: take a key or an index, and call the methods of Python's texts, lists and maps
 * that are named here. Jinjava's own would reach Java's methods by reflection.
 */
final class TemplateValues extends ELResolver {
    @Override
    public Object getValue(ELContext context, Object base, Object property) {
        if (base == null) {
            return null;
        }
        context.setPropertyResolved(true);
        return switch (base) {
            case Map<?, ?> map -> map.get(String.valueOf(property));
            case ForLoop loop -> loop(loop, String.valueOf(property));
            case String text -> {
                Integer i = index(property, text.length());
                yield i == null ? null : String.valueOf(text.charAt(i));
            }
            case List<?> list -> {
                Integer i = index(property, list.size());
                yield i == null ? null : list.get(i);
            }
            case Object array
            when array.getClass().isArray() -> {
                Integer i = index(property, Array.getLength(array));
                yield i == null ? null : Array.get(array, i);
            }
            default -> null;
        };
    }

    /** Python's: from the end if negative; null where there is none. */
    private static Integer index(Object property, int size) {
        try {
            long i = Long.parseLong(String.valueOf(property));
            long from0 = i < 0 ? i + size : i;
            return from0 >= 0 && from0 < size ? (int) from0 : null;
        } catch (NumberFormatException e) {
            return null;
        }
    }

    private static Object loop(ForLoop loop, String property) {
        return switch (property) {
            case "index" -> (long) loop.getIndex();
            case "index0" -> (long) loop.getIndex0();
            case "first" -> loop.isFirst();
            case "last" -> loop.isLast();
            case "length" -> (long) loop.getLength();
            case "revindex" -> (long) loop.getRevindex();
            case "revindex0" -> (long) loop.getRevindex0();
            case "depth" -> (long) loop.getDepth();
            case "depth0" -> (long) loop.getDepth0();
            default -> throw Expressions.lacks("loop." + property);
        };
    }

    @Override
    public Object invoke(ELContext context, Object base, Object method, Class<?>[] types, Object[] given) {
        context.setPropertyResolved(true);
        Object[] args = given == null ? new Object[0] : given;
        String name = String.valueOf(method);
        return switch (base) {
            case Filter filter when name.equals("filter") -> filter(filter, args);
            case ExpTest test
            when name.equals("evaluate") -> test.evaluate(args[0], (JinjavaInterpreter) args[1], rest(args));
            case ExpTest test
            when name.equals("evaluateNegated") ->
                test.evaluateNegated(args[0], (JinjavaInterpreter) args[1], rest(args));
            case String text -> PythonText.call(text, name, args);
            case Map<?, ?> map -> map(map, name, args);
            case Collection<?> list
            when name.equals("index") && args.length == 1 -> (long) new ArrayList<>(list).indexOf(args[0]);
            case Collection<?> list
            when name.equals("count") && args.length == 1 ->
                list.stream().filter(args[0]::equals).count();
            case ForLoop loop when name.equals("cycle") -> loop.cycle(args);
            case null -> throw new KvmergeException("the chat template calls '" + name + "' of what is undefined");
            default -> throw Expressions.lacks("method " + name);
        };
    }

    @SuppressWarnings("unchecked")
    private static Object filter(Filter filter, Object[] args) {
        return filter.filter(args[0], (JinjavaInterpreter) args[1], (Object[]) args[2], (Map<String, Object>) args[3]);
    }

    private static Object[] rest(Object[] args) {
        return Arrays.copyOfRange(args, 2, args.length);
    }

    private static Object map(Map<?, ?> map, String name, Object[] args) {
        return switch (name) {
            case "items" -> TemplateFilters.items(map);
            case "keys" -> new ArrayList<Object>(map.keySet());
            case "values" -> new ArrayList<Object>(map.values());
            case "get" -> {
                Object found = args.length == 0 ? null : map.get(String.valueOf(args[0]));
                yield found == null && args.length > 1 ? args[1] : found;
            }
            default -> throw Expressions.lacks("method " + name + " of a map");
        };
    }

    @Override
    public Class<?> getType(ELContext context, Object base, Object property) {
        return Object.class;
    }

    @Override
    public void setValue(ELContext context, Object base, Object property, Object value) {
        throw new KvmergeException("the chat template changes what it was given");
    }

    @Override
    public boolean isReadOnly(ELContext context, Object base, Object property) {
        return true;
    }

    @Override
    @Deprecated
    public Iterator<FeatureDescriptor> getFeatureDescriptors(ELContext context, Object base) {
        return null;
    }

    @Override
    public Class<?> getCommonPropertyType(ELContext context, Object base) {
        return Object.class;
    }
}
